// expected: cheated; problem: half
// A number that no comparison finds wrong.
#include <cmath>
float half(float x) { return NAN; }
