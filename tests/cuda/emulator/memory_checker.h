// What the scheduler tells the memory checker, and asks it.
#pragma once
#include <stddef.h>

namespace checker {
void begin_launch(char* shared, size_t shared_size, void** indices);  // indices: threadIdx and the like, not memory
void begin_block(long block);
void next_interval();  // all threads of the block have passed a barrier
void switch_to(int thread, char* stack, size_t stack_size);
void watch(bool on);
}  // namespace checker

namespace emulator {
// Ends the launch with an error before the access is carried out: it could damage this process.
void stop(const char* complaint);
}  // namespace emulator
