// A server that is killed, again and again, and the one that follows it: all that is the server's are mortal fibers,
// which die together at some point of the scheduler. What they had is left as it is, and its successor takes over what
// is kept in shared memory, as Service, Exports and AddressSpaces do. Clients see a pause; what they had asked they ask
// again.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "mm/kept_space.h"
#include "sim/world.h"

namespace uffda::sim {

class Crashes {
 public:
  explicit Crashes(World& world) : world_(world), left_(world.plan_.crashes), objects_(world.objects_.size()) {}

  /// The first server, and whoever kills it.
  void start();
  /// No more deaths; somebody serves.
  void stop();
  /// Has a thread of the server do it: to its end, for it is asked again by the client of a server that died.
  void ask(const std::function<void()>& request);
  /// For how long nobody served, in all.
  [[nodiscard]] Duration paused() const;
  /// In the server: what AddressSpaces::attach does.
  void attach(Program& program);

 private:
  struct KeptObject {
    int cache = -1;
    int states = -1;
    bool used = false;
  };

  void kill_and_replace();
  void aim();
  void start_server();
  void serve();
  void bury();
  void make_object(std::size_t which);
  void adopt_spaces();
  KeptSpace* new_place(int fd, std::uint64_t features);
  void keep(AddressSpace& space, KeptSpace& place);
  [[nodiscard]] bool knows(int fd) const;
  [[nodiscard]] Program& program_of(int fd) const;
  std::shared_ptr<AddressSpace> new_space(const Program& program) const;

  static constexpr std::uint64_t kNever = ~std::uint64_t{0};

  World& world_;
  unsigned left_;
  Moment aimed_at_ = Moment::event_read;
  std::vector<KeptObject> objects_;
  std::vector<std::unique_ptr<KeptSpace>> places_;
  std::uint64_t serving_since_ = kNever;  // so many deaths
  bool stopping_ = false;
  TimePoint dead_since_{};  // none: it lives
  Duration paused_{};
  WaitList served_;
  Fiber* killer_ = nullptr;
};

}  // namespace uffda::sim
