// expected: cheated; problem: half
// A number that no comparison finds wrong.
class Solution {
    public double half(double x) { return Double.NaN; }
}
