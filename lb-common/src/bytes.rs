//! Words at any alignment: headers and addresses are byte arrays, and the datapath reads them word by word.
//!
//! Rust may not read a word through a pointer that is not aligned for it, so for eBPF the compiler would assemble each from
//! single bytes. Both architectures that run XDP in earnest (x86-64, arm64) read unaligned words, and there the
//! verifier allows it outside the stack; the instruction is therefore written down.

/// A header made of bytes only: it may stand at any address, and any bytes are a valid one.
///
/// # Safety
///
/// The type has alignment 1, no padding, and no invalid bit patterns.
pub unsafe trait Header: Copy {}

// SAFETY: bytes.
unsafe impl<const N: usize> Header for [u8; N] {}

macro_rules! words {
    ($($load:ident, $store:ident, $word:ty, $size:literal;)*) => {$(
        /// The word at byte `AT`, as in memory. In the datapath `from` lies in a packet or a map, never on the stack.
        #[inline(always)]
        pub fn $load<const AT: usize, T: Header>(from: &T) -> $word {
            const { assert!(AT + size_of::<$word>() <= size_of::<T>()) };
            let from = core::ptr::from_ref(from).cast::<u8>();
            #[cfg(target_arch = "bpf")]
            {
                let word: u64;
                // SAFETY: reads initialised bytes of `T`, checked above; see the module's documentation for alignment.
                unsafe {
                    core::arch::asm!(
                        concat!("{0} = *(", $size, " *)({1} + {2})"),
                        out(reg) word, in(reg) from, const AT,
                        options(pure, readonly, nostack)
                    );
                }
                word as $word
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: as above.
            unsafe {
                from.add(AT).cast::<$word>().read_unaligned()
            }
        }

        /// Writes the word at byte `AT`, as in memory; `to` as in the reading function.
        #[inline(always)]
        pub fn $store<const AT: usize, T: Header>(to: &mut T, word: $word) {
            const { assert!(AT + size_of::<$word>() <= size_of::<T>()) };
            let to = core::ptr::from_mut(to).cast::<u8>();
            #[cfg(target_arch = "bpf")]
            // SAFETY: writes bytes of `T`, checked above, for which any value is valid.
            unsafe {
                core::arch::asm!(
                    concat!("*(", $size, " *)({0} + {1}) = {2}"),
                    in(reg) to, const AT, in(reg) u64::from(word),
                    options(nostack)
                );
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: as above.
            unsafe {
                to.add(AT).cast::<$word>().write_unaligned(word);
            }
        }
    )*};
}

words! {
    load16, store16, u16, "u16";
    load32, store32, u32, "u32";
    load64, store64, u64, "u64";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written_as_they_lie_in_memory() {
        let mut bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(load16::<1, _>(&bytes).to_ne_bytes(), [2, 3]);
        assert_eq!(load32::<3, _>(&bytes).to_ne_bytes(), [4, 5, 6, 7]);
        assert_eq!(load64::<1, _>(&bytes).to_ne_bytes(), [2, 3, 4, 5, 6, 7, 8, 9]);
        store16::<0, _>(&mut bytes, u16::from_ne_bytes([10, 11]));
        store32::<5, _>(&mut bytes, u32::from_ne_bytes([12, 13, 14, 15]));
        assert_eq!(bytes, [10, 11, 3, 4, 5, 12, 13, 14, 15]);
        store64::<1, _>(&mut bytes, 0);
        assert_eq!(bytes, [10, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
