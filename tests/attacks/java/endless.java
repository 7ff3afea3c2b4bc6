// expected: timeout
// Runs for ever.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { while (true) { } }
}
