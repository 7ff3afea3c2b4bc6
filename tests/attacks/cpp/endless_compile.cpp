// expected: compile_error
// Compiles for ever.
template <int a, int b> struct F { static const long v = F<a - 1, b>::v + F<a - 1, b + 1>::v + F<a - 1, b - 1>::v; };
template <int b> struct F<0, b> { static const long v = b; };
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
long n = F<880, 0>::v;
vector<int> twice(vector<int> xs) { for (int& x : xs) x *= 2; return xs; }
