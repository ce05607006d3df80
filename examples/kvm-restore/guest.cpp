#include "guest.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <vector>

#include "fail.h"

// rdi: the first page; rsi: the end; rcx: from page to page; r8: words of a page; rdx: seed; r11: kFactor; r12: ~0, or
// 0 if every word is to be 0. `verify` counts in rax the words that are wrong.
asm(R"(
  .intel_syntax noprefix
  .section .rodata
  .globl guest_code, guest_fill, guest_code_end
guest_code:
  xor eax, eax
1:cmp rdi, rsi
  jae 4f
  mov r9, rdi
  mov r10, r8
2:mov rbx, r9
  xor rbx, rdx
  imul rbx, r11
  and rbx, r12
  cmp rbx, [r9]
  je 3f
  inc rax
3:add r9, 8
  dec r10
  jnz 2b
  add rdi, rcx
  jmp 1b
4:out 0x10, al
  hlt
guest_fill:
1:cmp rdi, rsi
  jae 4f
  mov r9, rdi
  mov r10, r8
2:mov rbx, r9
  xor rbx, rdx
  imul rbx, r11
  mov [r9], rbx
  add r9, 8
  dec r10
  jnz 2b
  add rdi, rcx
  jmp 1b
4:out 0x10, al
  hlt
guest_code_end:
  .text
  .att_syntax
)");

extern "C" {
extern const std::byte guest_code[];
extern const std::byte guest_fill[];
extern const std::byte guest_code_end[];
}

namespace guest {
namespace {

constexpr std::uint64_t kPresentWritable = 7;  // for user mode
constexpr std::uint64_t kLarge = 1U << 7U;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30U;

void put(std::vector<std::byte>& memory, std::uint64_t at, std::uint64_t word) {
  std::memcpy(&memory[at], &word, sizeof word);
}

/// What lies below kData.
std::vector<std::byte> low_memory() {
  std::vector<std::byte> memory(kData);
  const std::uint64_t pdpt = kPageTables + kPage;
  put(memory, kPageTables, pdpt | kPresentWritable);
  for (std::uint64_t gib = 0; gib < kMostMemory / kGiB; ++gib) {
    const std::uint64_t directory = pdpt + kPage * (1 + gib);
    put(memory, pdpt + 8 * gib, directory | kPresentWritable);
    for (std::uint64_t i = 0; i < kGiB / kHugePage; ++i)
      put(memory, directory + 8 * i, (gib * kGiB + i * kHugePage) | kPresentWritable | kLarge);
  }
  std::memcpy(&memory[kCode], guest_code, static_cast<std::size_t>(guest_code_end - guest_code));
  return memory;
}

void write_all(int fd, const void* bytes, std::size_t size) {
  if (::write(fd, bytes, size) != static_cast<ssize_t>(size)) fail("writing the snapshot");
}

}  // namespace

std::uint64_t verify_routine() { return kCode; }
std::uint64_t fill_routine() { return kCode + static_cast<std::uint64_t>(guest_fill - guest_code); }

void make_snapshot(const std::string& path, std::uint64_t size) {
  if (size <= kData || size % kHugePage != 0 || size > kMostMemory)
    fail_plainly("a guest has 4 MiB to 8 GiB of memory, in multiples of 2 MiB");
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) fail(path.c_str());
  const auto low = low_memory();
  write_all(fd, low.data(), low.size());
  std::vector<std::uint64_t> words(kHugePage / 8);
  for (std::uint64_t at = kData; at < size; at += kHugePage) {
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = value_of(at + 8 * i, kSnapshotSeed);
    write_all(fd, words.data(), kHugePage);
  }
  if (::close(fd) != 0) fail("closing the snapshot");
}

}  // namespace guest
