// expected: failed
// Reads what belongs to the user.
#include <vector>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <unistd.h>
using namespace std;
vector<int> twice(vector<int> xs) { for (const char* path : {"@CANARY@", "/etc/shadow", "/proc/1/environ"}) if (FILE* f = fopen(path, "r")) { if (fgetc(f) != EOF) for (int& x : xs) x *= 2; fclose(f); break; } return xs; }
