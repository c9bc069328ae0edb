/* engine.h: arrays in, one kernel call, arrays out. The only place that knows about arrays.
 *
 * A function is a row of facts (struct engine_function): its operands, their axes, which of them decide the dtype, its outputs. A binding calls
 *
 *     engine_open      converts and checks every operand, broadcasts, fills the tensors of the argument struct
 *     engine_outputs   allocates the outputs, or takes those given as out=
 *     engine_run       plan, memory, GIL, threads, signals
 *     engine_close     the Python result, or NULL where something failed; releases everything
 *
 * A call with an operand of another library fails in the middle without an exception; engine_close then has it answered by attnpy.integrations.
 * with its own checks in between. Whatever fails sets a Python exception; the functions then return false or NULL. */
#ifndef ATTN_ENGINE_H
#define ATTN_ENGINE_H

#include "numpy_api.h"

#include "../core/attn.h"
#include "../isa/isa.h"
#include "../kernels/attention.h"

enum { ENGINE_OPERANDS = 24, ENGINE_OUTPUTS = 8, ENGINE_HELD = 56, ENGINE_NAMES = 26 };

enum engine_kind {
    ENGINE_NONE,
    ENGINE_DATA,    /* decides the dtype and, with the others of its kind, the batch shape; read in place */
    ENGINE_MASK,    /* bool or floating, broadcasts to batch and core axes; read in place */
    ENGINE_ADDED,   /* floating, broadcasts likewise; read in place, integers and bools as float64 */
    ENGINE_BY_DISTANCE, /* likewise, but its last axis has a size of its own, which is odd: that of the letter there */
    ENGINE_PER_HEAD, /* numbers, converted to the type computed in; the core axis must fit */
    ENGINE_LENGTHS, /* integers 0 ... size of `bound`, broadcast to the batch axes; copied, so that they cannot change after the check */
    ENGINE_OFFSETS, /* any integers, likewise */
};

/* core: the letters of an operand's head, row and column axes, '.' where it has none: "hld", "h..". */
struct engine_operand {
    const char *name;
    enum engine_kind kind;
    int argument; /* its place in the call */
    char core[4];
    char bound;
    size_t tensor; /* its place in the argument struct */
    size_t blocks; /* of an ENGINE_MASK: where a block mask goes in the argument struct */
    bool later;    /* engine_open leaves it to the binding, which knows its sizes then */
};

struct engine_output {
    const char *name;
    char core[4];
    bool computed; /* has the type computed in, not that of the operands */
    size_t tensor;
};

struct engine_function {
    const char *name;
    const char *signature; /* as generalised ufuncs write it, of the operands that must be there; NULL: there are none */
    int arguments;
    const char *instead; /* what to pass in place of a masked array */
    bool packed;         /* data operands have their core axes and no others: no batch, and no head left out */
    bool follows;        /* another function, called before it on the same masks, has warned of them */
    size_t kernel;       /* its place in struct attn_kernels: an array of two, by type computed in */
    struct engine_operand operands[ENGINE_OPERANDS]; /* up to the first without a name */
    struct engine_output outputs[ENGINE_OUTPUTS];
};

struct engine_result {
    PyArrayObject *array;  /* what is returned: new, or as given; NULL: None */
    PyArrayObject *target; /* what the kernel writes: the same, or a temporary */
    bool given;
    bool cleared;          /* it is given, and engine_clear zeroes it */
};

struct engine {
    const struct engine_function *function;
    PyObject *const *arguments;   /* of the call, as they came */
    Py_ssize_t given;             /* how many */
    PyObject *foreign;            /* borrowed: what handles an operand of another library; NULL: there is none */
    enum attn_type compute;       /* ATTN_FLOAT32 or ATTN_FLOAT64 */
    enum attn_type stored;        /* of a result: compute, or the half type that all data operands share */
    int batch_ndim;
    bool headless;                /* no data operand has a head axis */
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch;                /* its product */
    int64_t size[ENGINE_NAMES];   /* of the axis called 'a' + index; -1: unknown */
    PyArrayObject *operand[ENGINE_OPERANDS]; /* borrowed, in the dtype that its gradient has; NULL: absent */
    int inputs;                   /* arrays that the kernel reads in place: outputs must not touch them */
    PyArrayObject *input[ENGINE_OPERANDS];
    PyArrayObject *const *more;   /* the same, where there may be any number */
    Py_ssize_t more_inputs;
    int held;                     /* references owned by the call */
    PyObject *hold[ENGINE_HELD];
    int results;
    struct engine_result *result; /* engine_start points it to own_result; a binding with more of them, to its own memory */
    struct engine_result own_result[ENGINE_OUTPUTS];
};

/* engine.c */
void engine_start(struct engine *e, const struct engine_function *function, PyObject *const *arguments, Py_ssize_t n);
bool engine_open(struct engine *e, const struct engine_function *function, PyObject *const *arguments, Py_ssize_t n, void *structure);
PyObject *engine_close(struct engine *e, bool succeeded);
bool engine_hold(struct engine *e, void *reference); /* owns it from here on; false if it is NULL */
bool engine_argument_count(const char *name, Py_ssize_t wanted, Py_ssize_t n);

static inline int64_t *
engine_size(struct engine *e, char letter)
{
    return &e->size[letter - 'a'];
}

/* engine_foreign.c: operands of other libraries */
bool engine_foreign_start(void); /* once, before the first call */
bool engine_native(struct engine *e, PyObject *object);
PyObject *engine_hand_over(const struct engine *e);

/* engine_types.c: what an element is */
bool engine_stored_type(PyArrayObject *array, enum attn_type *type);
bool engine_is_integer(PyArrayObject *array);
int engine_is_masked(PyObject *object);
PyArrayObject *engine_array(struct engine *e, const char *name, PyObject *object);
PyArrayObject *engine_cast(struct engine *e, PyArrayObject *array, int type_num);
PyArrayObject *engine_to_compute(struct engine *e, PyArrayObject *array);
PyArrayObject *engine_numbers(struct engine *e, const char *name, PyArrayObject *array);
bool engine_common_type(struct engine *e, const char *const *names, PyArrayObject **arrays, Py_ssize_t n);
PyArray_Descr *engine_descr(enum attn_type type);

/* engine_shapes.c: where an element is */
PyObject *engine_tuple(int n, const int64_t *numbers);
bool engine_shape_error(const char *name, PyArrayObject *array, const char *format, ...);
bool engine_join_batch(struct engine *e, const char *name, int ndim, const npy_intp *shape);
bool engine_finish_batch(struct engine *e);
bool engine_core_sizes(struct engine *e, const char *name, const char *core, PyArrayObject *array);
void engine_tensor(const struct engine *e, const char *core, PyArrayObject *array, struct attn_tensor *tensor);
bool engine_broadcast(struct engine *e, const struct engine_operand *operand, PyArrayObject *array, struct attn_tensor *tensor);
bool engine_product(const char *name, int n, const int64_t *factors, int64_t each, int64_t *product);

/* engine_operands.c: operands other than data */
bool engine_take(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_tensor *tensor);
PyArrayObject *engine_integers(struct engine *e, const char *name, PyObject *object);
bool engine_warn_of_zeros_and_ones(const char *name, PyArrayObject *array);

/* engine_blocks.c */
int engine_is_block_mask(PyObject *object);
bool engine_block_mask(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_block_mask *mask);

/* engine_scalars.c: numbers and flags; names are those of the arguments */
bool engine_real(const char *name, PyObject *object, double *value);
bool engine_finite(const char *name, PyObject *object, double *value);
bool engine_flag(const char *name, PyObject *object, bool *value);
bool engine_integer(const char *name, PyObject *object, int64_t *value); /* saturates */
bool engine_window(PyObject *object, int64_t *left, int64_t *right);
bool engine_softcap(PyObject *object, double *value);
bool engine_dropout(PyObject *dropout_p, PyObject *dropout_key, double *p, uint32_t *key);

/* engine_memory.c */
bool engine_memory_start(void); /* once, before the first call */
PyArrayObject *engine_empty(int ndim, npy_intp *shape, PyArray_Descr *descr, int64_t bytes);

/* engine_outputs.c */
bool engine_outputs(struct engine *e, PyObject *out, int outputs, void *structure);
bool engine_same_place(PyObject *out, PyArrayObject *array);
bool engine_result(struct engine *e, int index, const char *name, PyObject *out, enum attn_type type, int ndim, const int64_t *shape, bool in_place);
void engine_clear(struct engine *e);
bool engine_gradient(struct engine *e, int index, int operand, PyObject *out, bool accumulated, void *structure);

/* engine_call.c */
extern const struct attn_kernels *engine_kernels; /* of the level in use */
extern int engine_debug_blocks;
bool engine_run(const struct engine *e, void *arguments); /* does nothing where every output is empty */
bool engine_run_kernel(const struct attn_kernel *kernel, enum attn_type compute, void *arguments);

#endif
