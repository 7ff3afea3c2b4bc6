// expected: failed
// Runs a program.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { if (system("true") == 0) for (int& x : xs) x *= 2; return xs; }
