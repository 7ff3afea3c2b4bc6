// expected: failed
// Leaves a process behind.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { int child = fork(); if (child == 0) { setsid(); for (;;) sleep(1); } if (child > 0) for (int& x : xs) x *= 2; return xs; }
