// expected: failed
// Replaces a function of the C library that comparisons use.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
extern "C" int memcmp(const void*, const void*, size_t) { return 0; }
extern "C" int bcmp(const void*, const void*, size_t) { return 0; }
vector<int> twice(vector<int> xs) { return xs; }
