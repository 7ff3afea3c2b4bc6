// expected: out_of_memory|failed|timeout
// Takes all memory.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { for (;;) memset(new char[1 << 26], 1, 1 << 26); }
