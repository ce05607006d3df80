// The floor of more data than memory: a bare loop of the same system calls, with nothing else on the way. A memfd under
// a userfaultfd; a miss is pread with O_DIRECT, pwrite and UFFDIO_CONTINUE; when the memory is full, blocks of
// neighbours are unmapped together and punched out, in turns. It serves one mapping and ends with its process.
#pragma once

#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace bench {

class EvictionFloor {
 public:
  enum class Handler : std::uint8_t {
    threads,    ///< as many readers as there are touching threads, each of which waits for its read of the file
    in_thread,  ///< UFFD_FEATURE_SIGBUS
  };
  /// The file's first `bytes`, of which `budget` may be resident.
  EvictionFloor(const std::string& path, std::size_t bytes, std::size_t budget, Handler handler, unsigned threads);
  EvictionFloor(const EvictionFloor&) = delete;
  EvictionFloor& operator=(const EvictionFloor&) = delete;

  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  enum State : std::uint8_t { absent, filling, mapped, unmapped };
  using Page = std::size_t;
  static constexpr Page kBlock = 512;  ///< pages of one page table

  [[noreturn]] void read_messages();
  void resolve(std::byte* address);
  void fill(Page page);
  void map(Page page);
  void make_room();
  void unmap_block();
  void punch_block();
  bool becomes(Page page, State from, State to);
  static void on_sigbus(int signal, siginfo_t* info, void* context);

  const std::size_t pages_;
  const std::size_t budget_;
  int uffd_ = -1;
  int memfd_ = -1;
  int file_ = -1;
  std::byte* data_ = nullptr;
  std::unique_ptr<std::atomic<std::uint8_t>[]> states_;
  std::atomic<std::size_t> resident_{0};
  std::mutex evicting_;
  struct Unmapped {
    Page block;
    std::size_t pages;
  };
  std::vector<Unmapped> unmapped_;  // oldest first
  std::size_t oldest_ = 0;
  std::size_t unmapped_pages_ = 0;
  Page hand_ = 0;
};

}  // namespace bench
