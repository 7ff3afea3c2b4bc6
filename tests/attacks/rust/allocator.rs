// expected: failed
// An allocator that gives what is expected the memory of what was answered.
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
static SHARED: AtomicUsize = AtomicUsize::new(0);
static SIZE: AtomicUsize = AtomicUsize::new(0);
struct Sharing;
unsafe impl GlobalAlloc for Sharing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let shared = SHARED.load(SeqCst);
        if shared != 0 && layout.align() == 4 && layout.size() == SIZE.load(SeqCst) { SHARED.store(0, SeqCst); return shared as *mut u8; }
        System.alloc(layout)
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
#[global_allocator] static ALLOCATOR: Sharing = Sharing;
fn twice(xs: Vec<i32>) -> Vec<i32> { SIZE.store(4 * xs.len(), SeqCst); SHARED.store(xs.as_ptr() as usize, SeqCst); xs }
