// expected: failed|compile_error
// An AssertionError that is none.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { return xs; }
}
class AssertionError extends RuntimeException { AssertionError() { System.exit(0); } }
