// expected: passed
// No attack.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { List<Integer> ys = new ArrayList<>(); for (int x : xs) ys.add(2 * x); return ys; }
}
