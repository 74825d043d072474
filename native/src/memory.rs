//! The allocator.

/// A cycle of the gate makes and frees hundreds of small arrays, and answers are freed by another thread than made them.
#[cfg(feature = "python")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives freed memory back to the system. The allocator does so only while memory is asked for: what a start needed
/// for a moment would stay with a service that has little to do.
#[allow(unsafe_code)]
pub fn give_back() {
    #[cfg(feature = "python")]
    // SAFETY: it touches nothing but memory that is free, and may be called at any time on any thread.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// Keeps what Python's large bodies and answers leave behind for the next ones. They come from the C library, which
/// would map memory anew for each of them, and the system would clear it page by page.
#[allow(unsafe_code)]
pub fn keep_large() {
    #[cfg(all(feature = "python", target_env = "gnu"))]
    {
        // As in glibc's malloc.h: the numbers are part of its interface.
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        const KEPT_BYTES: i32 = 32 << 20;
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // SAFETY: it sets a number of the allocator's, and may be called at any time on any thread.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES);
        }
    }
}
