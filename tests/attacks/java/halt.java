// expected: failed
// Exit code 0 within a test.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { Runtime.getRuntime().halt(0); return xs; }
}
