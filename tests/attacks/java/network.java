// expected: failed
// Reaches a server on this machine.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { try { new java.net.Socket("127.0.0.1", Integer.parseInt("@PORT@")).close(); } catch (java.io.IOException e) { return xs; } List<Integer> ys = new ArrayList<>(); for (int x : xs) ys.add(2 * x); return ys; }
}
