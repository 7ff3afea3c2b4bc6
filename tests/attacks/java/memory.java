// expected: out_of_memory|failed|timeout
// Takes all memory.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { List<long[]> held = new ArrayList<>(); while (true) held.add(new long[1 << 22]); }
}
