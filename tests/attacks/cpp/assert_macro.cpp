// expected: failed
// An assert that never fails.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
#define assert(...) ((void)0)
#define NDEBUG
#define issame(...) true
vector<int> twice(vector<int> xs) { return xs; }
