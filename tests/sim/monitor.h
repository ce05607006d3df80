// A monitor in a simulated program: registers parts of its memory, answers the faults that it is sent, protects pages
// from writing or follows what is written, while the core goes on to serve the rest.
//
// What must hold beside the bytes: no write goes through to a page that writeprotect() said is protected, until the
// monitor itself lifts that; and with WP_ASYNC written() names every page that was written since it named it last.
#pragma once

#include <optional>
#include <set>

#include "mm/uffd_monitor.h"
#include "sim/world.h"

namespace uffda::sim {

class Monitor {
 public:
  /// `async`: writes are followed, not stopped. `changing` is the program's lock on its mappings: what is shown where
  /// stays while it is held.
  Monitor(World& world, Process& process, std::shared_ptr<AddressSpace> space, KernelLock& changing, bool async);
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  /// The userfaultfd of a program that has such a monitor.
  static std::uint64_t kernel_features(bool async);

  void start();
  /// The program stores to this page, now.
  void note_store(std::uint64_t page);
  /// The program unmaps a range, with its lock held.
  void forget(std::uint64_t start, std::uint64_t end);

 private:
  struct Part {
    std::uint64_t start = 0;
    std::uint64_t length = 0;
    bool file = false;
    [[nodiscard]] std::uint64_t end() const { return start + length; }
  };

  void answer_faults();
  void act();
  void answer(const uffd_msg& message);
  UffdOutcome fill(std::uint64_t page);
  /// Some pages of some mapping.
  std::optional<Part> pick();
  void check_protected() const;
  void change_registration(const Part& part);
  void change_protection(const Part& part);
  void look_for_written(const Part& part);
  [[nodiscard]] bool crowded() const;
  [[nodiscard]] ResolveFlags flags_of(std::uint64_t page) const;

  World& world_;
  Process& process_;
  KernelLock& changing_;
  bool async_;
  std::optional<UffdMonitor> monitor_;
  bool stopping_ = false;
  Fiber* reader_ = nullptr;
  std::set<std::uint64_t> protected_;  // pages of files
  std::set<std::uint64_t> stores_;     // pages that written() has to name
};

}  // namespace uffda::sim
