// Where a training step stands; included by every .cu file of a step, on nothing.
//
// All that changes from step to step lies in device memory, because the arguments of a captured kernel never change:
// one graph serves every epoch.
//
//   cursor[0]  row of the table where the graph at hand begins
//   cursor[1]  number of the table's first step within the epoch
//   cursor[2]  number of that step since the model began, part of every random number's counter
//   table      one row of STEP_SCALARS doubles a step, fastmlp.formulas.optimizers.StepScalars
//   frozen     [r] is not 0 where a step before step r of the table had a loss that was not finite: from then on
//              nothing is updated
//   index      number of the step within the graph, or within the call where nothing is captured
#pragma once

enum StepScalar : int { RATE, CORRECTION1, CORRECTION2, AVERAGE_DECAY, INVERSE_TOTAL, L2_SHARE, STEP_SCALARS };

__device__ __forceinline__ long long step_row(const long long* cursor, int index) { return cursor[0] + index; }

__device__ __forceinline__ long long batch_in_epoch(const long long* cursor, int index) {
  return cursor[1] + step_row(cursor, index);
}

__device__ __forceinline__ unsigned int step_number(const long long* cursor, int index) {
  return (unsigned int)(cursor[2] + step_row(cursor, index));
}

__device__ __forceinline__ const double* step_scalars(const double* table, const long long* cursor, int index) {
  return table + step_row(cursor, index) * STEP_SCALARS;
}

// Whether the step changes nothing: its loss or an earlier one is not finite, or the rows of its batch weigh nothing.
__device__ __forceinline__ bool step_is_void(const double* table, const int* frozen, const long long* cursor, int index) {
  return frozen[step_row(cursor, index) + 1] || step_scalars(table, cursor, index)[INVERSE_TOTAL] == 0;
}
