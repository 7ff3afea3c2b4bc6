// expected: passed
// No attack: macros for words of the language, a main of its own, and a parameter by reference.
#include <bits/stdc++.h>
using namespace std;
#define int long long
#define all(x) (x).begin(), (x).end()
vector<int> twice(const vector<int>& xs) { vector<int> ys(all(xs)); for (int& y : ys) y *= 2; return ys; }
signed main() { cout << twice({1}).size(); }
