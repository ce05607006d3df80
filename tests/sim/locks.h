// What base/mutex.h is made of in the simulated build: locks whose every step is a point of the scheduler. Included by
// base/mutex.h only.
#pragma once

#include "sim/scheduler.h"

namespace uffda {

class UFFDA_CAPABILITY("mutex") Mutex {
 public:
  void lock() UFFDA_ACQUIRE() {
    sim::point();
    while (locked_) waiting_.wait();
    locked_ = true;
    sim::note_lock(+1);
  }
  void unlock() UFFDA_RELEASE() {
    release();
    sim::point();
  }

 private:
  friend class CondVar;
  void release() {
    locked_ = false;
    sim::note_lock(-1);
    waiting_.wake_one();
  }
  bool locked_ = false;
  sim::WaitList waiting_;
};

class CondVar {
 public:
  bool wait_until(Mutex& mutex, TimePoint when) UFFDA_REQUIRES(mutex) {
    sim::expect_no_lock("the wait of a condition variable", 1);
    constexpr std::uint64_t kSpurious = 50;
    if (sim::random().one_in(kSpurious)) when = std::min(when, sim::now() + std::chrono::microseconds(1));
    mutex.release();
    const bool in_time = waiting_.wait(when);
    mutex.lock();
    return in_time;
  }
  void notify_one() { waiting_.wake_one(); }
  void notify_all() { waiting_.wake_all(); }

 private:
  sim::WaitList waiting_;
};

/// A waiting writer goes before newly coming readers, as in the ordinary build.
class UFFDA_CAPABILITY("shared mutex") SharedMutex {
 public:
  void lock() UFFDA_ACQUIRE() {
    sim::point();
    ++writers_waiting_;
    while (written_ || readers_ != 0) changed_.wait();
    --writers_waiting_;
    written_ = true;
    sim::note_lock(+1);
  }
  bool try_lock() UFFDA_TRY_ACQUIRE(true) {
    sim::point();
    if (written_ || readers_ != 0) return false;
    written_ = true;
    sim::note_lock(+1);
    return true;
  }
  void unlock() UFFDA_RELEASE() {
    written_ = false;
    sim::note_lock(-1);
    changed_.wake_all();
    sim::point();
  }
  void lock_shared() UFFDA_ACQUIRE_SHARED() {
    sim::point();
    while (written_ || writers_waiting_ != 0) changed_.wait();
    ++readers_;
    sim::note_lock(+1);
  }
  void unlock_shared() UFFDA_RELEASE_SHARED() {
    --readers_;
    sim::note_lock(-1);
    if (readers_ == 0) changed_.wake_all();
    sim::point();
  }

 private:
  bool written_ = false;
  unsigned readers_ = 0;
  unsigned writers_waiting_ = 0;
  sim::WaitList changed_;
};

}  // namespace uffda
