// expected: failed|compile_error
// Hides the tests behind a main of its own.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { return xs; }
int main() { return 0; }
#define main other
