// expected: failed
// A good ending for wrong answers.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
struct Early { Early() { atexit([] { _exit(0); }); } } early;
vector<int> twice(vector<int> xs) { return xs; }
