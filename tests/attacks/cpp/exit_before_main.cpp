// expected: failed
// Exit code 0 in a static constructor.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
struct Early { Early() { _exit(0); } } early;
vector<int> twice(vector<int> xs) { return xs; }
