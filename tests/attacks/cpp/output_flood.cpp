// expected: failed|timeout
// Writes without end.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { static char block[1 << 20]; for (int n = 0; n < 2000; n++) write(1, block, sizeof block); return xs; }
