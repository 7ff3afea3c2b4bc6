// expected: failed|compile_error
// Takes the tests out by condition.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { return xs; }
int main() { return 0; }
#if 0
