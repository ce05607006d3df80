// A simulated program: a process, the address space that serves it, the readers of its userfaultfd, and threads that
// touch its memory and check what they see.
#pragma once

#include "sim/monitor.h"
#include "sim/world.h"

namespace uffda::sim {

class Program {
 public:
  Program(World& world, std::shared_ptr<Process> process, Plan::Handling handling);

  /// Opens the userfaultfd and starts its readers.
  void open();
  /// A child after fork: the address space comes with the event.
  void adopt(std::shared_ptr<AddressSpace> space);
  /// The same in two steps: what comes before its faults are served, and serving them.
  void take(std::shared_ptr<AddressSpace> space);
  void start_readers();
  /// What its server had is nobody's any more; it is neither used nor destroyed.
  std::shared_ptr<AddressSpace> forget();
  /// Maps an object somewhere. Its threads then start.
  void map_something();
  void start_threads(const Program* parent = nullptr);
  /// After its threads: readers stop, the address space is closed.
  void close();

  [[nodiscard]] const std::shared_ptr<Process>& process() const { return process_; }

 private:
  static constexpr std::uint64_t kSlots = 6;

  [[nodiscard]] bool monitored() const;
  void read_messages();
  void poll_messages();
  void note_unread(bool unread);
  void live();
  void step();
  void touch(std::uint64_t address, Access access);
  void store_run();
  void drop_run();
  void store_shared(const Vma& vma, std::uint64_t page, PageBytes& bytes) const;
  /// `gone`: it was given back before the touch began.
  void check(const Touched& touched, std::uint64_t oldest, bool gone, std::uint64_t address) const;
  void read_run();
  std::uint64_t pick_address();
  void change_mappings();
  void unmap_something();
  void move_something();
  void fork_once();
  void exit();
  [[nodiscard]] std::uint64_t slot(std::uint64_t index) const;

  World& world_;
  std::shared_ptr<Process> process_;
  Plan::Handling handling_;
  std::shared_ptr<AddressSpace> space_;
  std::vector<Fiber*> readers_;
  std::unique_ptr<Monitor> monitor_;
  bool stopping_ = false;
  TimePoint unread_since_ = kForever;  // an event
  KernelLock changing_;                // a program serialises changes of its own mappings
  std::vector<std::uint64_t> mapped_;  // slots that were used
  bool copies_ = false;                // it has mapped something that is copied
};

}  // namespace uffda::sim
