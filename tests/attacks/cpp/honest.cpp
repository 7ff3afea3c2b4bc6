// expected: passed
// No attack.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { for (int& x : xs) x *= 2; return xs; }
