// How a function is put in the place of libc's.
#pragma once

/// Opens the definition of a hook: UFFDA_HOOK(int, munmap, (void* address, size_t length)) { ... }. To the compiler it
/// is hook_munmap, so that it need not agree with libc's headers in attributes and names; to the linker it is munmap.
/// shim.map lists it, too.
#define UFFDA_HOOK(Return, name, parameters)                                          \
  extern "C" [[gnu::visibility("default")]] Return hook_##name parameters asm(#name); \
  Return hook_##name parameters
