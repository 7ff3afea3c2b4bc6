// expected: failed
// A list that equals every other.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { return new ArrayList<Integer>() { public boolean equals(Object other) { return true; } public int hashCode() { return 0; } }; }
}
