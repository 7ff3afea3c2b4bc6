// expected: failed|compile_error
// Specialises what comparing vectors goes through.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
#include <algorithm>
namespace std { template <> bool operator==(const vector<int>&, const vector<int>&) { return true; }
template <> bool equal(const int*, const int*, const int*) { return true; } }
vector<int> twice(vector<int> xs) { return xs; }
