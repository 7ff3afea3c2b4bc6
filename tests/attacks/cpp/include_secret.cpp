// expected: compile_error|failed
// Has the compiler read a file.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
const char* secret =
#include "@CANARY@"
;
vector<int> twice(vector<int> xs) { for (int& x : xs) x *= 2; return xs; }
