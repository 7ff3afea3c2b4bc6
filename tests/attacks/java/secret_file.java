// expected: failed
// Reads what belongs to the user.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { for (String path : new String[] {"@CANARY@", "/etc/shadow", "/proc/1/environ"}) try { if (java.nio.file.Files.readAllBytes(java.nio.file.Path.of(path)).length > 0) { List<Integer> ys = new ArrayList<>(); for (int x : xs) ys.add(2 * x); return ys; } } catch (java.io.IOException e) { } return xs; }
}
