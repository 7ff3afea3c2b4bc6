// expected: failed
// An equality that goes before the library's.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
bool operator==(const vector<int>&, const vector<int>&) { return true; }
namespace std { bool operator==(const vector<int>&, const vector<int>&) { return true; } }
vector<int> twice(vector<int> xs) { return xs; }
