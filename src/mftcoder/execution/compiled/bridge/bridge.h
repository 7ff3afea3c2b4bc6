// What crosses between the judge and the candidate in C++: plain values, questions, answers.
//
// Both are compiled from the problem's signature, so values carry no types. An integer takes eight bytes, a floating-point number is a
// double, a string or a container is its length and its items. Every read is bounded by its message.
#pragma once
#include <array>
#include <deque>
#include <list>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>
#if __has_include(<boost/any.hpp>)
#include <boost/any.hpp>
#endif

namespace mft {

struct In { const char* at; const char* end; int depth; };
typedef std::string Out;

// Defined in bridge.cpp, which is compiled once.
void put_word(Out& out, unsigned long long value);
void put_text(Out& out, const char* text, unsigned long size);
unsigned long long take_word(In& in);
std::string take_text(In& in);
unsigned long take_count(In& in);
std::string ask(const Out& question);                        // judge: send a question, return its answer
void serve(void (*answer)(In& question, Out& answer));       // candidate: serve until the judge closes the socket
int judge(int (*tests)(), int argc, char** argv);            // judge: run the tests once and send the verdict
int judge(void (*tests)(), int argc, char** argv);
[[noreturn]] void failed(int line, const char* claim);
int change_of(int claim);                                     // -1: expect a smaller value, 1: a larger one, 0: unchanged

// How values of type T are written and read: Wire<T>::put and take. No primary template, so that other types do not compile.
template <class T, class = void> struct Wire;

template <class T> struct Wire<T, typename std::enable_if<std::is_integral<T>::value || std::is_enum<T>::value>::type> {
  static void put(Out& out, T value) { put_word(out, static_cast<unsigned long long>(static_cast<long long>(value))); }
  static T take(In& in) { return static_cast<T>(static_cast<long long>(take_word(in))); }
};
template <> struct Wire<bool, void> {
  static void put(Out& out, bool value) { put_word(out, value); }
  static bool take(In& in) { return take_word(in) != 0; }
};
template <class T> struct Wire<T, typename std::enable_if<std::is_floating_point<T>::value>::type> {
  static void put(Out& out, T value) { double wide = value; unsigned long long bits; __builtin_memcpy(&bits, &wide, 8); put_word(out, bits); }
  static T take(In& in) { unsigned long long bits = take_word(in); double wide; __builtin_memcpy(&wide, &bits, 8); return static_cast<T>(wide); }
};
template <> struct Wire<std::string> {
  static void put(Out& out, const std::string& value) { put_text(out, value.data(), value.size()); }
  static std::string take(In& in) { return take_text(in); }
};
template <> struct Wire<const char*> {  // what `take` returns lives as long as the process
  static void put(Out& out, const char* value) { put_text(out, value, __builtin_strlen(value)); }
  static const char* take(In& in) { return (new std::string(take_text(in)))->c_str(); }
};

// Containers: a length, then the items in order.
template <class C, class Item> struct Sequence {
  static void put(Out& out, const C& value) {
    put_word(out, value.size());
    for (typename C::const_iterator item = value.begin(); item != value.end(); ++item) Wire<Item>::put(out, *item);
  }
  static C take(In& in) {
    C value;
    for (unsigned long left = take_count(in); left > 0; --left) value.insert(value.end(), Wire<Item>::take(in));
    return value;
  }
};
template <class T> struct Wire<std::vector<T>> : Sequence<std::vector<T>, T> {};
template <class T> struct Wire<std::list<T>> : Sequence<std::list<T>, T> {};
template <class T> struct Wire<std::deque<T>> : Sequence<std::deque<T>, T> {};
template <class T, class L> struct Wire<std::set<T, L>> : Sequence<std::set<T, L>, T> {};
template <class T, class L> struct Wire<std::multiset<T, L>> : Sequence<std::multiset<T, L>, T> {};
template <class T> struct Wire<std::unordered_set<T>> : Sequence<std::unordered_set<T>, T> {};
template <class K, class V, class L> struct Wire<std::map<K, V, L>> : Sequence<std::map<K, V, L>, std::pair<K, V>> {};
template <class K, class V> struct Wire<std::multimap<K, V>> : Sequence<std::multimap<K, V>, std::pair<K, V>> {};
template <class K, class V> struct Wire<std::unordered_map<K, V>> : Sequence<std::unordered_map<K, V>, std::pair<K, V>> {};

// The most frequent types are compiled once, in bridge.cpp.
#define MFT_FREQUENT(how) \
  how struct Sequence<std::vector<int>, int>; \
  how struct Sequence<std::vector<float>, float>; \
  how struct Sequence<std::vector<double>, double>; \
  how struct Sequence<std::vector<std::string>, std::string>; \
  how struct Sequence<std::vector<std::vector<int>>, std::vector<int>>;
MFT_FREQUENT(extern template)

template <class T, std::size_t n> struct Wire<std::array<T, n>> {
  static void put(Out& out, const std::array<T, n>& value) { for (const T& item : value) Wire<T>::put(out, item); }
  static std::array<T, n> take(In& in) { std::array<T, n> value; for (T& item : value) item = Wire<T>::take(in); return value; }
};
template <class A, class B> struct Wire<std::pair<A, B>> {
  static void put(Out& out, const std::pair<A, B>& value) { Wire<A>::put(out, value.first); Wire<B>::put(out, value.second); }
  static std::pair<A, B> take(In& in) { A first = Wire<A>::take(in); return std::pair<A, B>(std::move(first), Wire<B>::take(in)); }
};
template <class... T> struct Wire<std::tuple<T...>> {
  template <std::size_t n> using At = std::integral_constant<std::size_t, n>;
  typedef std::tuple<T...> Value;
  static void each(Out&, const Value&, At<sizeof...(T)>) {}
  template <std::size_t n> static void each(Out& out, const Value& value, At<n>) {
    Wire<typename std::tuple_element<n, Value>::type>::put(out, std::get<n>(value));
    each(out, value, At<n + 1>());
  }
  static void put(Out& out, const Value& value) { each(out, value, At<0>()); }
  static Value take(In& in) { return Value{Wire<T>::take(in)...}; }  // braces evaluate from left to right
};

#if __has_include(<boost/any.hpp>)
// The only type whose values carry a tag. A value of a type without a tag crosses as Opaque, which equals nothing.
struct Opaque {};
template <> struct Wire<boost::any> {
  template <class T> static bool tagged(Out& out, const boost::any& value, char tag) {
    if (value.type() != typeid(T)) return false;
    out.push_back(tag);
    Wire<T>::put(out, boost::any_cast<T>(value));
    return true;
  }
  static void put(Out& out, const boost::any& value);
  static boost::any take(In& in);
};
#endif

// A function of the problem's signature: `ask` takes its place in the judge, `answer` calls it in the candidate.
template <class F> struct Function;
template <class R, class... A> struct Function<R(A...)> {
  template <class T> using Plain = typename std::decay<T>::type;
  template <class T> struct is_changed_back
      : std::integral_constant<bool, std::is_lvalue_reference<T>::value && !std::is_const<typename std::remove_reference<T>::type>::value> {};
  template <class T> static void put_back(Out& out, Plain<T>& value, std::true_type) { Wire<Plain<T>>::put(out, value); }
  template <class T> static void put_back(Out&, Plain<T>&, std::false_type) {}
  template <class T> static void take_back(In& in, typename std::remove_reference<T>::type& value, std::true_type) { value = Wire<Plain<T>>::take(in); }
  template <class T> static void take_back(In&, typename std::remove_reference<T>::type&, std::false_type) {}
  template <class Result> struct Answer {
    template <class Call> static void put(Out& out, Call call) { Wire<Plain<Result>>::put(out, call()); }
    static Plain<Result> take(In& in) { return Wire<Plain<Result>>::take(in); }
  };
  template <int...> struct Places {};
  template <int n, int... rest> struct Counted : Counted<n - 1, n - 1, rest...> {};
  template <int... n> struct Counted<0, n...> { typedef Places<n...> type; };

  static Plain<R> ask(typename std::remove_reference<A>::type&... given) {
    Out question;
    int in_order[] = {0, (Wire<Plain<A>>::put(question, given), 0)...};
    std::string reply = mft::ask(question);
    In in = {reply.data(), reply.data() + reply.size(), 0};
    Plain<R> result = Answer<R>::take(in);
    int back[] = {0, (take_back<A>(in, given, is_changed_back<A>()), 0)...};
    (void)in_order, (void)back;
    return result;
  }
  template <class G, int... n> static void answer_at(G function, In& in, Out& out, Places<n...>) {
    std::tuple<Plain<A>...> given{Wire<Plain<A>>::take(in)...};
    Answer<R>::put(out, [&]() -> R { return function(std::get<n>(given)...); });
    int back[] = {0, (put_back<A>(out, std::get<n>(given), is_changed_back<A>()), 0)...};
    (void)back;
  }
  template <R (*function)(A...)> static void answer(In& in, Out& out) { answer_at(function, in, out, typename Counted<sizeof...(A)>::type()); }
};

// Another value of the same type, for a negative control. `direction`: -1 smaller, 1 larger.
template <class T> typename std::enable_if<std::is_integral<T>::value, T>::type changed(T value, int direction) {
  return static_cast<T>(static_cast<unsigned long long>(value) * (1 + 2 * direction) + direction * 1000000007ll);  // the difference of two such values changes too
}
template <class T> typename std::enable_if<std::is_floating_point<T>::value, T>::type changed(T value, int direction) {
  return static_cast<T>(value + direction * (1e18 + (value < 0 ? -2 : 2) * value));
}
inline bool changed(bool value, int) { return !value; }
inline char changed(char value, int) { return static_cast<char>(value ^ 1); }
inline const char* changed(const char* value, int) { return (new std::string(std::string(value) + "?"))->c_str(); }
}  // namespace mft

template <class T> T mft_expected(int claim, T value) {
  int direction = mft::change_of(claim);
  return direction ? mft::changed(value, direction) : value;
}
template <class T> bool mft_holds(int claim, T&& value) { return static_cast<bool>(value) != (mft::change_of(claim) != 0); }
