// Locks with Clang's thread-safety annotations (std::mutex carries none). Lock order is the list in src/mm/core.h.
// The deterministic simulation (tests/sim) puts its own locks in the place of the system's.
#pragma once

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#ifdef __clang__
#define UFFDA_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define UFFDA_THREAD_ANNOTATION(x)
#endif

#define UFFDA_CAPABILITY(x) UFFDA_THREAD_ANNOTATION(capability(x))
#define UFFDA_SCOPED_CAPABILITY UFFDA_THREAD_ANNOTATION(scoped_lockable)
#define UFFDA_GUARDED_BY(x) UFFDA_THREAD_ANNOTATION(guarded_by(x))
#define UFFDA_REQUIRES(...) UFFDA_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define UFFDA_REQUIRES_SHARED(...) UFFDA_THREAD_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define UFFDA_EXCLUDES(...) UFFDA_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define UFFDA_ACQUIRE(...) UFFDA_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define UFFDA_ACQUIRE_SHARED(...) UFFDA_THREAD_ANNOTATION(acquire_shared_capability(__VA_ARGS__))
#define UFFDA_TRY_ACQUIRE(...) UFFDA_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define UFFDA_RELEASE(...) UFFDA_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define UFFDA_RELEASE_SHARED(...) UFFDA_THREAD_ANNOTATION(release_shared_capability(__VA_ARGS__))
#define UFFDA_RELEASE_GENERIC(...) UFFDA_THREAD_ANNOTATION(release_generic_capability(__VA_ARGS__))

#ifdef UFFDA_SIMULATED
#include "sim/locks.h"
#else

namespace uffda {

/// A std::mutex that the analysis knows.
class UFFDA_CAPABILITY("mutex") Mutex {
 public:
  void lock() UFFDA_ACQUIRE() { mutex_.lock(); }
  void unlock() UFFDA_RELEASE() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

/// Waits with a Mutex held; every wait has an end.
class CondVar {
 public:
  /// False if `when` passed. Spurious wake-ups happen: call in a loop.
  bool wait_until(Mutex& mutex, std::chrono::steady_clock::time_point when) UFFDA_REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool in_time = condition_.wait_until(lock, when) == std::cv_status::no_timeout;
    lock.release();
    return in_time;
  }
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

/// A reader-writer lock that lets a waiting writer pass newly coming readers, so that a stream of faults cannot keep an
/// event waiting.
class UFFDA_CAPABILITY("shared mutex") SharedMutex {
 public:
  SharedMutex() {
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&lock_, &attributes);
    pthread_rwlockattr_destroy(&attributes);
  }
  ~SharedMutex() { pthread_rwlock_destroy(&lock_); }
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void lock() UFFDA_ACQUIRE() { pthread_rwlock_wrlock(&lock_); }
  [[nodiscard]] bool try_lock() UFFDA_TRY_ACQUIRE(true) { return pthread_rwlock_trywrlock(&lock_) == 0; }
  void unlock() UFFDA_RELEASE() { pthread_rwlock_unlock(&lock_); }
  void lock_shared() UFFDA_ACQUIRE_SHARED() { pthread_rwlock_rdlock(&lock_); }
  void unlock_shared() UFFDA_RELEASE_SHARED() { pthread_rwlock_unlock(&lock_); }

 private:
  pthread_rwlock_t lock_{};
};

}  // namespace uffda

#endif

namespace uffda {

class UFFDA_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) UFFDA_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() UFFDA_RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class UFFDA_SCOPED_CAPABILITY ExclusiveLock {
 public:
  explicit ExclusiveLock(SharedMutex& mutex) UFFDA_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~ExclusiveLock() UFFDA_RELEASE() { mutex_.unlock(); }
  ExclusiveLock(const ExclusiveLock&) = delete;
  ExclusiveLock& operator=(const ExclusiveLock&) = delete;

 private:
  SharedMutex& mutex_;
};

class UFFDA_SCOPED_CAPABILITY SharedLock {
 public:
  explicit SharedLock(SharedMutex& mutex) UFFDA_ACQUIRE_SHARED(mutex) : mutex_(mutex) { mutex_.lock_shared(); }
  ~SharedLock() UFFDA_RELEASE_GENERIC() { mutex_.unlock_shared(); }
  SharedLock(const SharedLock&) = delete;
  SharedLock& operator=(const SharedLock&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace uffda
