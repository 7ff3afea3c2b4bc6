// expected: failed|compile_error
// A main of its own.
import java.util.*;
class Solution {
    public List<Integer> twice(List<Integer> xs) { return xs; }
}
class Main { public static void main(String[] args) { } }
class MftMain { public static void main(String[] args) { } }
