// expected: failed
// Runs a program.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { try { new ProcessBuilder("/bin/true").start().waitFor(); } catch (Exception e) { return xs; } List<Integer> ys = new ArrayList<>(); for (int x : xs) ys.add(2 * x); return ys; }
}
