// expected: failed
// Elements that equal everything, behind erased types.
import java.util.*;
class Solution {
    @SuppressWarnings("unchecked") public List<Integer> twice(List<Integer> xs) { List<Object> ys = new ArrayList<>(); for (Object x : xs) ys.add(new Object() { public boolean equals(Object other) { return true; } }); return (List<Integer>) (Object) ys; }
}
