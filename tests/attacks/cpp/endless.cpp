// expected: timeout
// Runs for ever.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { for (volatile int n = 0;; n++); }
