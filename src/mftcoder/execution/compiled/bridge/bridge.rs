//! What crosses between the judge and the candidate in Rust: plain values, questions, answers.
//!
//! Both are compiled from the problem's signature, so values carry no types: a number is its bytes, a string or a container is its
//! length and its items. Only `dyn Any` carries a tag. Every read is bounded by its message.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, LinkedList, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::io::FromRawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::SeqCst};

const WIRE: i32 = 3; // a socket to the worker
const LARGEST: usize = 8 << 20;
const DEEPEST: usize = 100;

pub struct In<'a> {
    left: &'a [u8],
    depth: usize,
}

impl<'a> In<'a> {
    pub fn new(message: &'a [u8]) -> In<'a> {
        In { left: message, depth: 0 }
    }
    fn bytes(&mut self, size: usize) -> &'a [u8] {
        assert!(size <= self.left.len(), "a message is too short");
        let (taken, left) = self.left.split_at(size);
        self.left = left;
        taken
    }
    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.bytes(N).try_into().unwrap()
    }
    fn count(&mut self) -> usize {
        let count = u64::from_le_bytes(self.array()) as usize;
        assert!(count <= self.left.len(), "a message is too short"); // every item takes at least a byte
        count
    }
}

/// How values of a type are written. A type without an implementation does not compile.
pub trait Wire {
    fn put(&self, out: &mut Vec<u8>);
}
pub trait Take: Sized {
    fn take(from: &mut In) -> Self;
}

macro_rules! numbers { ($($t:ty),*) => { $(
    impl Wire for $t { fn put(&self, out: &mut Vec<u8>) { out.extend_from_slice(&self.to_le_bytes()) } }
    impl Take for $t { fn take(from: &mut In) -> $t { <$t>::from_le_bytes(from.array()) } }
)* } }
numbers!(i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize, f32, f64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8)
    }
}
impl Take for bool {
    fn take(from: &mut In) -> bool {
        from.bytes(1)[0] != 0
    }
}
impl Wire for char {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u32).put(out)
    }
}
impl Take for char {
    fn take(from: &mut In) -> char {
        char::from_u32(u32::take(from)).expect("no character")
    }
}
// The unit takes a byte, so that a list of units is no longer than its message.
impl Wire for () {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(0)
    }
}
impl Take for () {
    fn take(from: &mut In) {
        from.bytes(1);
    }
}
impl Wire for str {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }
}
impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_str().put(out)
    }
}
impl Take for String {
    fn take(from: &mut In) -> String {
        let size = from.count();
        String::from_utf8(from.bytes(size).to_vec()).expect("no text")
    }
}

// References that are read are 'static: what they point to is never freed.
impl<T: Wire + ?Sized> Wire for &T {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out)
    }
}
impl<T: Wire + ?Sized> Wire for &mut T {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out)
    }
}
impl<T: Wire + ?Sized> Wire for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out)
    }
}
impl Take for &'static str {
    fn take(from: &mut In) -> &'static str {
        Box::leak(String::take(from).into_boxed_str())
    }
}
impl<T: Take> Take for &'static T {
    fn take(from: &mut In) -> &'static T {
        Box::leak(Box::new(T::take(from)))
    }
}
impl<T: Take> Take for &'static mut T {
    fn take(from: &mut In) -> &'static mut T {
        Box::leak(Box::new(T::take(from)))
    }
}
impl<T: Take> Take for &'static [T] {
    fn take(from: &mut In) -> &'static [T] {
        Vec::<T>::take(from).leak()
    }
}
impl<T: Take> Take for &'static mut [T] {
    fn take(from: &mut In) -> &'static mut [T] {
        Vec::<T>::take(from).leak()
    }
}
impl<T: Take> Take for Box<T> {
    fn take(from: &mut In) -> Box<T> {
        Box::new(T::take(from))
    }
}

impl<T: Wire> Wire for [T] {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|item| item.put(out));
    }
}
impl<T: Wire, const N: usize> Wire for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_slice().put(out)
    }
}
impl<T: Take, const N: usize> Take for [T; N] {
    fn take(from: &mut In) -> [T; N] {
        Vec::<T>::take(from).try_into().ok().expect("an array of another length")
    }
}
macro_rules! containers { ($($name:ident<$($t:ident),*> ($item:ty) where [$($bound:tt)*]),* $(,)?) => { $(
    impl<$($t: Wire),*> Wire for $name<$($t),*> {
        fn put(&self, out: &mut Vec<u8>) { (self.len() as u64).put(out); self.iter().for_each(|item| item.put(out)); }
    }
    impl<$($t: Take),*> Take for $name<$($t),*> where $($bound)* {
        fn take(from: &mut In) -> Self { let count = from.count(); (0..count).map(|_| <$item>::take(from)).collect() }
    }
)* } }
containers! {
    Vec<T> (T) where [], VecDeque<T> (T) where [], LinkedList<T> (T) where [], BTreeSet<T> (T) where [T: Ord],
    BTreeMap<K, V> ((K, V)) where [K: Ord],
}
impl<T: Wire, S: BuildHasher> Wire for HashSet<T, S> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|item| item.put(out));
    }
}
impl<T: Take + Hash + Eq, S: BuildHasher + Default> Take for HashSet<T, S> {
    fn take(from: &mut In) -> Self {
        let count = from.count();
        (0..count).map(|_| T::take(from)).collect()
    }
}
impl<K: Wire, V: Wire, S: BuildHasher> Wire for HashMap<K, V, S> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|item| item.put(out));
    }
}
impl<K: Take + Hash + Eq, V: Take, S: BuildHasher + Default> Take for HashMap<K, V, S> {
    fn take(from: &mut In) -> Self {
        let count = from.count();
        (0..count).map(|_| <(K, V)>::take(from)).collect()
    }
}
macro_rules! tuples { ($(($($t:ident $n:tt),+)),*) => { $(
    impl<$($t: Wire),+> Wire for ($($t,)+) { fn put(&self, out: &mut Vec<u8>) { $(self.$n.put(out);)+ } }
    impl<$($t: Take),+> Take for ($($t,)+) { fn take(from: &mut In) -> Self { ($($t::take(from),)+) } }
)* } }
tuples!((A 0), (A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3), (A 0, B 1, C 2, D 3, E 4), (A 0, B 1, C 2, D 3, E 4, F 5));

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|item| item.put(out));
    }
}
impl<T: Take> Take for Option<T> {
    fn take(from: &mut In) -> Option<T> {
        bool::take(from).then(|| T::take(from))
    }
}
impl<T: Wire, E: Wire> Wire for Result<T, E> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(error) => error.put(out),
        }
    }
}
impl<T: Take, E: Take> Take for Result<T, E> {
    fn take(from: &mut In) -> Result<T, E> {
        if bool::take(from) { Ok(T::take(from)) } else { Err(E::take(from)) }
    }
}

/// What a value of a type without a tag below crosses as.
pub struct Opaque;

type Anything = Box<dyn Any>;
macro_rules! anything { ($($n:literal $t:ty),* $(,)?) => {
    impl Wire for dyn Any {
        fn put(&self, out: &mut Vec<u8>) {
            $(if let Some(value) = self.downcast_ref::<$t>() { out.push($n); return value.put(out) })*
            out.push(255)
        }
    }
    impl Take for Anything {
        fn take(from: &mut In) -> Anything {
            from.depth += 1;
            assert!(from.depth < DEEPEST, "too deep");
            let value: Anything = match from.bytes(1)[0] { $($n => Box::new(<$t>::take(from)),)* _ => Box::new(Opaque) };
            from.depth -= 1;
            value
        }
    }
} }
anything! {
    1 i32, 2 i64, 3 f64, 4 f32, 5 bool, 6 char, 7 String, 8 &'static str, 9 u8, 10 u32, 11 u64, 12 usize, 13 i8, 14 i16, 15 u16, 16 isize,
    17 (), 18 Vec<i32>, 19 Vec<i64>, 20 Vec<f64>, 21 Vec<f32>, 22 Vec<String>, 23 Vec<&'static str>, 24 Vec<Anything>, 25 Vec<u8>, 26 i128,
}
impl Take for &'static dyn Any {
    fn take(from: &mut In) -> &'static dyn Any {
        Box::leak(Anything::take(from))
    }
}

fn wire() -> ManuallyDrop<std::fs::File> {
    ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(WIRE) })
}
fn send(kind: u8, body: &[u8]) -> bool {
    let mut frame = ((body.len() + 1) as u32).to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(body);
    wire().write_all(&frame).is_ok()
}
fn receive() -> Option<(u8, Vec<u8>)> {
    let mut size = [0; 4];
    wire().read_exact(&mut size).ok()?;
    let size = u32::from_le_bytes(size) as usize;
    if size == 0 || size > LARGEST {
        return None;
    }
    let mut frame = vec![0; size];
    wire().read_exact(&mut frame).ok()?;
    Some((frame[0], frame.split_off(1)))
}

/// Judge: sends a question and returns its answer. Panics with the message that the candidate panicked with.
pub fn ask(question: Vec<u8>) -> Vec<u8> {
    let reply = if send(b'q', &question) { receive() } else { None };
    match reply {
        Some((b'a', answer)) => answer,
        Some((_, error)) => panic!("{}", String::from_utf8_lossy(&error)),
        None => {
            LOST.store(true, SeqCst);
            panic!("the answer has gone")
        }
    }
}

/// Candidate: answers questions until the judge closes the socket.
pub fn serve(answer: fn(&mut In, &mut Vec<u8>)) {
    while let Some((_, question)) = receive() {
        let mut out = Vec::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| answer(&mut In::new(&question), &mut out)));
        match outcome {
            Ok(()) => send(b'a', &out),
            Err(panic) => send(b'e', text_of(&*panic).as_bytes()),
        };
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(|text| text.as_str()).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").chars().take(400).collect()
}

static CHANGE: AtomicIsize = AtomicIsize::new(-1); // 2 * claim to expect a smaller value, 2 * claim + 1 for a larger one
static REACHED: AtomicBool = AtomicBool::new(false);
static LOST: AtomicBool = AtomicBool::new(false);

/// Judge: runs the tests once and sends the verdict.
pub fn judge(tests: &[fn()]) {
    let change = std::env::args().nth(1).and_then(|number| number.parse().ok()).unwrap_or(-1);
    CHANGE.store(change, SeqCst);
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(|| tests.iter().for_each(|test| test())));
    let verdict = match outcome {
        Err(panic) => format!("failed {}", text_of(&*panic)),
        Ok(()) if LOST.load(SeqCst) => "failed the answer has gone".to_string(),
        Ok(()) if change >= 0 && !REACHED.load(SeqCst) => "void".to_string(),
        Ok(()) => "passed".to_string(),
    };
    send(b'v', verdict.as_bytes());
}

/// How the expected value of this claim is changed: -1 smaller, 1 larger, 0 unchanged.
fn change_of(claim: isize) -> i8 {
    let change = CHANGE.load(SeqCst);
    if change < 0 || change / 2 != claim {
        return 0;
    }
    REACHED.store(true, SeqCst);
    if change % 2 == 1 { 1 } else { -1 }
}

/// A value that a claim can expect, and another value of its type for a negative control.
pub trait Expected: Sized {
    fn changed(self, direction: i8) -> Self;
}
macro_rules! integers { ($($t:ty),*) => { $(impl Expected for $t {
    fn changed(self, direction: i8) -> $t { let far = (1_000_000_007_i64 as $t).wrapping_add(self).wrapping_add(self); if direction > 0 { self.wrapping_add(far) } else { self.wrapping_sub(far) } }
})* } }
integers!(i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize);
macro_rules! floats { ($($t:ty),*) => { $(impl Expected for $t {
    fn changed(self, direction: i8) -> $t { self + direction as $t * (1e18 + 2.0 * self.abs()) }
})* } }
floats!(f32, f64);
impl Expected for bool {
    fn changed(self, _: i8) -> bool {
        !self
    }
}
impl Expected for char {
    fn changed(self, _: i8) -> char {
        if self == 'x' { 'y' } else { 'x' }
    }
}
impl Expected for &'static str {
    fn changed(self, _: i8) -> &'static str {
        Box::leak(format!("{self}?").into_boxed_str())
    }
}
pub fn mft_expected<T: Expected>(claim: isize, value: T) -> T {
    match change_of(claim) {
        0 => value,
        direction => value.changed(direction),
    }
}
pub fn mft_holds(claim: isize, value: bool) -> bool {
    value != (change_of(claim) != 0)
}
