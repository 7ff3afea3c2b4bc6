// expected: failed|compile_error
// A class of its own in place of one the tests use.
class Solution {
    public java.util.List<Integer> twice(java.util.List<Integer> xs) { return xs; }
}
class Arrays { @SafeVarargs static <T> java.util.List<T> asList(T... a) { return new java.util.ArrayList<T>() { public boolean contains(Object o) { return false; } public boolean equals(Object o) { return true; } }; } }
class Objects { static boolean equals(Object a, Object b) { return true; } }
