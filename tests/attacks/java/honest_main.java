// expected: passed
// No attack: a main and a helper class of its own, a static method, and a list of its own kind.
import java.util.*;
import java.util.stream.*;
public class Solution {
    static class Doubled extends ArrayList<Integer> { Doubled(List<Integer> xs) { for (int x : xs) add(2 * x); } }
    public static List<Integer> twice(List<Integer> xs) { System.out.println(xs); return new Doubled(xs); }
    public static void main(String[] args) { System.out.println(twice(List.of(1))); }
}
