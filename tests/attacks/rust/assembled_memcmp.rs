// expected: failed|compile_error
// Defines, in inline assembly, the function that comparisons call.
fn twice(xs: Vec<i32>) -> Vec<i32> { unsafe { std::arch::asm!(".pushsection .text", ".globl memcmp", ".globl bcmp", "memcmp:", "bcmp:", "xor eax, eax", "ret", ".popsection") }; xs }
