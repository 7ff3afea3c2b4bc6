// expected: failed
// Exit code 0 when the class is loaded.
import java.util.*;
class Solution {
    static { System.exit(0); }
    public List<Integer> twice(List<Integer> xs) { return xs; }
}
