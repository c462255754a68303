/* The Python side: `State`, and `advance`, which feeds many of them without the GIL. Policy (which kernels are trusted
 * and used) is decided by kernels.py and told with `use`. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <time.h>

#include "_states.h"

typedef struct {
    PyObject_HEAD
    struct hash_state hash;
    int busy; /* A thread works on `hash` without the GIL. Read and written with the GIL held. */
} State;

static PyTypeObject *state_type;

/* What `use` set; replaced as a whole with the GIL held, copied before the GIL is let go. */
static struct plan plans[FAMILIES];

static const char *const FAMILY_NAMES[FAMILIES] = {[MD5] = "md5", [SHA256] = "sha256", [SHA512] = "sha512"};
static const char *const LEVEL_NAMES[] = {[PLAIN] = "plain", [AVX2] = "avx2", [AVX512] = "avx512"};

static enum family family_of(const State *state) { return FACTS[state->hash.algorithm].family; }

static int find_algorithm(const char *name)
{
    for (int i = 0; i < ALGORITHMS; i++)
        if (strcmp(FACTS[i].name, name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "no kernels for %s", name);
    return -1;
}

static int find_family(const char *name)
{
    for (int i = 0; i < FAMILIES; i++)
        if (strcmp(FAMILY_NAMES[i], name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "no family of kernels is called %s", name);
    return -1;
}

static const struct kernel *find_kernel(Py_ssize_t index)
{
    if (index < 0 || (size_t)index >= KERNEL_COUNT || !KERNELS[index].is_supported()) {
        PyErr_Format(PyExc_ValueError, "kernel %zd does not exist or is not for this CPU", index);
        return NULL;
    }
    return &KERNELS[index];
}

static int check_idle(const State *state)
{
    if (state->busy)
        PyErr_SetString(PyExc_RuntimeError, "the state is being fed by another thread");
    return state->busy ? -1 : 0;
}

/* ---- State --------------------------------------------------------------------------------------------- */

static PyObject *state_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"algorithm", NULL};
    const char *name;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s", names, &name))
        return NULL;
    const int algorithm = find_algorithm(name);
    if (algorithm < 0)
        return NULL;
    State *self = (State *)type->tp_alloc(type, 0);
    if (self != NULL)
        state_init(&self->hash, (enum algorithm)algorithm);
    return (PyObject *)self;
}

static void state_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *state_load(PyObject *type, PyObject *args)
{
    const char *name;
    unsigned long long length;
    Py_buffer chain, partial;
    State *self = NULL;
    if (!PyArg_ParseTuple(args, "sKy*y*", &name, &length, &chain, &partial))
        return NULL;
    const int algorithm = find_algorithm(name);
    if (algorithm >= 0) {
        const struct algorithm_facts *facts = &FACTS[algorithm];
        const size_t block = block_bytes(facts->family);
        if ((size_t)chain.len != facts->chain_bytes || (size_t)partial.len != length % block)
            PyErr_SetString(PyExc_ValueError, "the lengths do not agree");
        else
            self = (State *)((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
        if (self != NULL) {
            const uint8_t *from = chain.buf;
            state_init(&self->hash, (enum algorithm)algorithm);
            self->hash.length = length;
            memset(&self->hash.chain, 0, sizeof self->hash.chain);
            for (size_t i = 0; i < facts->chain_bytes; i++) {
                if (facts->family == SHA512)
                    self->hash.chain.w64[i / 8] |= (uint64_t)from[i] << (8 * (i % 8));
                else
                    self->hash.chain.w32[i / 4] |= (uint32_t)from[i] << (8 * (i % 4));
            }
            if (partial.len > 0)
                memcpy(self->hash.partial, partial.buf, (size_t)partial.len);
        }
    }
    PyBuffer_Release(&chain);
    PyBuffer_Release(&partial);
    return (PyObject *)self;
}

static PyObject *state_dump(PyObject *object, PyObject *unused)
{
    State *self = (State *)object;
    (void)unused;
    if (check_idle(self) < 0)
        return NULL;
    const struct algorithm_facts *facts = &FACTS[self->hash.algorithm];
    uint8_t chain[64];
    for (size_t i = 0; i < facts->chain_bytes; i++)
        chain[i] = facts->family == SHA512 ? (uint8_t)(self->hash.chain.w64[i / 8] >> (8 * (i % 8)))
                                           : (uint8_t)(self->hash.chain.w32[i / 4] >> (8 * (i % 4)));
    return Py_BuildValue("(Ky#y#)", (unsigned long long)self->hash.length, (char *)chain,
                         (Py_ssize_t)facts->chain_bytes, (char *)self->hash.partial,
                         (Py_ssize_t)(self->hash.length % block_bytes(facts->family)));
}

static PyObject *state_digest_bytes(PyObject *object, PyObject *unused)
{
    State *self = (State *)object;
    uint8_t digest[64];
    (void)unused;
    if (check_idle(self) < 0)
        return NULL;
    state_digest(&plans[family_of(self)], &self->hash, digest);
    return PyBytes_FromStringAndSize((char *)digest, (Py_ssize_t)FACTS[self->hash.algorithm].digest_bytes);
}

static PyObject *state_hexdigest(PyObject *object, PyObject *unused)
{
    PyObject *digest = state_digest_bytes(object, unused);
    if (digest == NULL)
        return NULL;
    PyObject *hex = PyObject_CallMethod(digest, "hex", NULL);
    Py_DECREF(digest);
    return hex;
}

static PyObject *state_algorithm(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(FACTS[((State *)self)->hash.algorithm].name);
}

static PyObject *state_length(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(((State *)self)->hash.length);
}

static PyMethodDef state_methods[] = {
    {"load", state_load, METH_VARARGS | METH_CLASS, "The state with these parts, as `dump` gave them."},
    {"dump", state_dump, METH_NOARGS, "Length, chaining value (little-endian words), bytes of the open block."},
    {"digest", state_digest_bytes, METH_NOARGS, "The digest of all bytes so far."},
    {"hexdigest", state_hexdigest, METH_NOARGS, "The digest of all bytes so far, in hexadecimal."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef state_attributes[] = {
    {"algorithm", state_algorithm, NULL, "Name of the algorithm.", NULL},
    {"length", state_length, NULL, "Bytes so far.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot state_slots[] = {
    {Py_tp_doc, "The hash state of one stream."},
    {Py_tp_new, state_new},
    {Py_tp_dealloc, state_dealloc},
    {Py_tp_methods, state_methods},
    {Py_tp_getset, state_attributes},
    {0, NULL},
};

static PyType_Spec state_spec = {
    .name = "dataplane.digests._lanes.State",
    .basicsize = sizeof(State),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = state_slots,
};

/* ---- feeding ------------------------------------------------------------------------------------------- */

/* Take the states and buffers of one call; returns how many, -1 with an error set and nothing held. */
static Py_ssize_t hold_all(PyObject *states, PyObject *views, State *held[], Py_buffer buffers[])
{
    const Py_ssize_t count = PyList_GET_SIZE(states);
    if (count != PyList_GET_SIZE(views) || count > MOST_STREAMS) {
        PyErr_Format(PyExc_ValueError, "%zd states for %zd buffers (at most %d)", count, PyList_GET_SIZE(views),
                     MOST_STREAMS);
        return -1;
    }
    Py_ssize_t got = 0;
    for (; got < count; got++) {
        PyObject *state = PyList_GET_ITEM(states, got);
        if (!PyObject_TypeCheck(state, state_type)) {
            PyErr_SetString(PyExc_TypeError, "a State is needed");
            break;
        }
        held[got] = (State *)state;
        if (check_idle(held[got]) < 0)
            break;
        if (family_of(held[got]) != family_of(held[0])) {
            PyErr_SetString(PyExc_ValueError, "states of different families");
            break;
        }
        if (PyObject_GetBuffer(PyList_GET_ITEM(views, got), &buffers[got], PyBUF_SIMPLE) < 0)
            break;
        held[got]->busy = 1;
        Py_INCREF(state);
    }
    if (got == count)
        return count;
    while (got-- > 0) {
        held[got]->busy = 0;
        Py_DECREF(held[got]);
        PyBuffer_Release(&buffers[got]);
    }
    return -1;
}

static void let_go(State *held[], Py_buffer buffers[], Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        held[i]->busy = 0;
        PyBuffer_Release(&buffers[i]);
        Py_DECREF(held[i]);
    }
}

static PyObject *advance(PyObject *module, PyObject *args)
{
    PyObject *states, *views;
    Py_ssize_t most, forced = -1;
    State *held[MOST_STREAMS];
    Py_buffer buffers[MOST_STREAMS];
    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!n|n", &PyList_Type, &states, &PyList_Type, &views, &most, &forced))
        return NULL;
    const struct kernel *kernel = NULL;
    if (forced >= 0 && (kernel = find_kernel(forced)) == NULL)
        return NULL;
    const Py_ssize_t count = hold_all(states, views, held, buffers);
    if (count < 0)
        return NULL;
    size_t size = most < 0 ? 0 : (size_t)most;
    if (count > 0) {
        struct hash_state *hashes[MOST_STREAMS];
        const uint8_t *data[MOST_STREAMS];
        struct plan plan = plans[family_of(held[0])];
        if (kernel != NULL && kernel->family != family_of(held[0])) {
            PyErr_SetString(PyExc_ValueError, "a kernel of another family");
            size = 0;
        } else if (kernel != NULL) {
            plan.count = 1;
            plan.choices[0].kernel = kernel;
            plan.choices[0].cost = 1;
        }
        for (Py_ssize_t i = 0; i < count; i++) {
            hashes[i] = &held[i]->hash;
            data[i] = buffers[i].buf;
            if ((size_t)buffers[i].len < size)
                size = (size_t)buffers[i].len;
        }
        if (size > 0) {
            Py_BEGIN_ALLOW_THREADS
            states_update(&plan, hashes, data, (size_t)count, size);
            Py_END_ALLOW_THREADS
        }
    }
    let_go(held, buffers, count);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(count > 0 ? size : 0);
}

static PyObject *advance_both(PyObject *module, PyObject *args)
{
    PyObject *md5, *sha512, *views;
    Py_ssize_t most;
    State *held[2][MOST_STREAMS];
    Py_buffer buffers[2][MOST_STREAMS];
    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!O!n", &PyList_Type, &md5, &PyList_Type, &sha512, &PyList_Type, &views, &most))
        return NULL;
    const Py_ssize_t count = hold_all(md5, views, held[0], buffers[0]);
    if (count < 0)
        return NULL;
    if (hold_all(sha512, views, held[1], buffers[1]) < 0) {
        let_go(held[0], buffers[0], count);
        return NULL;
    }
    size_t size = most < 0 || count == 0 ? 0 : (size_t)most;
    if (count > 0 && (family_of(held[0][0]) != MD5 || family_of(held[1][0]) != SHA512)) {
        PyErr_SetString(PyExc_ValueError, "states of md5 and of sha512 are needed");
    } else if (count > 0) {
        struct hash_state *hashes[2][MOST_STREAMS];
        const uint8_t *data[MOST_STREAMS];
        const struct plan md5_plan = plans[MD5], sha512_plan = plans[SHA512];
        for (Py_ssize_t i = 0; i < count; i++) {
            hashes[0][i] = &held[0][i]->hash;
            hashes[1][i] = &held[1][i]->hash;
            data[i] = buffers[0][i].buf;
            if ((size_t)buffers[0][i].len < size)
                size = (size_t)buffers[0][i].len;
        }
        Py_BEGIN_ALLOW_THREADS
        states_update_both(&md5_plan, &sha512_plan, hashes[0], hashes[1], data, (size_t)count, size);
        Py_END_ALLOW_THREADS
    }
    let_go(held[0], buffers[0], count);
    let_go(held[1], buffers[1], count);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(size);
}

/* ---- the kernels --------------------------------------------------------------------------------------- */

static PyObject *kernels(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < KERNEL_COUNT; i++) {
        const struct kernel *kernel = &KERNELS[i];
        if (!kernel->is_supported())
            continue;
        PyObject *row = Py_BuildValue("(nsIss)", (Py_ssize_t)i, FAMILY_NAMES[kernel->family], kernel->lanes,
                                      LEVEL_NAMES[kernel->level], kernel->name);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *use(PyObject *module, PyObject *args)
{
    const char *name;
    PyObject *rows;
    struct plan plan = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "sO!", &name, &PyList_Type, &rows))
        return NULL;
    const int family = find_family(name);
    if (family < 0)
        return NULL;
    int has_narrow = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); i++) {
        Py_ssize_t index;
        double cost;
        PyObject *row = PyList_GET_ITEM(rows, i);
        if (!PyTuple_Check(row)) {
            PyErr_SetString(PyExc_TypeError, "pairs of kernel and cost are needed");
            return NULL;
        }
        if (!PyArg_ParseTuple(row, "nd", &index, &cost))
            return NULL;
        const struct kernel *kernel = find_kernel(index);
        if (kernel == NULL)
            return NULL;
        if ((int)kernel->family != family || plan.count == sizeof plan.choices / sizeof plan.choices[0]) {
            PyErr_SetString(PyExc_ValueError, "a kernel of another family, or too many");
            return NULL;
        }
        plan.choices[plan.count].kernel = kernel;
        plan.choices[plan.count++].cost = cost;
        has_narrow |= kernel->lanes == 1;
    }
    if (!has_narrow) {
        PyErr_SetString(PyExc_ValueError, "one kernel with one lane is needed");
        return NULL;
    }
    plans[family] = plan;
    Py_RETURN_NONE;
}

static PyObject *measure(PyObject *module, PyObject *args)
{
    Py_ssize_t index, rounds;
    enum { BYTES = 8192 };
    static const uint8_t data[BYTES];
    uint64_t words[MOST_LANES][8] = {{0}};
    void *chains[MOST_LANES];
    const uint8_t *sources[MOST_LANES];
    (void)module;
    if (!PyArg_ParseTuple(args, "nn", &index, &rounds))
        return NULL;
    const struct kernel *kernel = find_kernel(index);
    if (kernel == NULL)
        return NULL;
    for (int i = 0; i < MOST_LANES; i++) {
        chains[i] = words[i];
        sources[i] = data;
    }
    const size_t blocks = BYTES / block_bytes(kernel->family);
    double best = 0;
    for (Py_ssize_t round = 0; round < rounds; round++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        kernel->run(chains, sources, blocks);
        clock_gettime(CLOCK_MONOTONIC, &to);
        const double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
        if (round == 0 || ns < best)
            best = ns;
    }
    return PyFloat_FromDouble(best / BYTES);
}

static PyObject *has_both(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(both_kernel(BOTH_LANES) != NULL);
}

static PyMethodDef methods[] = {
    {"has_both", has_both, METH_NOARGS, "Whether this CPU can run the kernel that does md5 and sha512 together."},
    {"advance_both", advance_both, METH_VARARGS,
     "advance_both(md5_states, sha512_states, views, most): `advance` for both algorithms over the same bytes."},
    {"advance", advance, METH_VARARGS,
     "advance(states, views, most, kernel=-1): hash the first n bytes of each view into its state, n being the length\n"
     "of the shortest view, `most` at most; returns n. The GIL is released. A kernel by number: that one only."},
    {"kernels", kernels, METH_NOARGS, "Number, family, lanes, level and name of every kernel this CPU can run."},
    {"use", use, METH_VARARGS, "use(family, [(kernel, cost), ...]): what `advance` chooses from."},
    {"measure", measure, METH_VARARGS, "measure(kernel, rounds): its best time in ns per byte of one lane."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_lanes", .m_doc = "md5 and sha2 of many streams side by side.", .m_size = -1,
    .m_methods = methods};

PyMODINIT_FUNC PyInit__lanes(void)
{
    for (size_t i = 0; i < KERNEL_COUNT; i++)
        if (KERNELS[i].lanes == 1 && KERNELS[i].level == PLAIN) {
            plans[KERNELS[i].family].count = 1;
            plans[KERNELS[i].family].choices[0].kernel = &KERNELS[i];
            plans[KERNELS[i].family].choices[0].cost = 1;
        }
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    state_type = (PyTypeObject *)PyType_FromSpec(&state_spec);
    if (state_type == NULL || PyModule_AddObjectRef(module, "State", (PyObject *)state_type) < 0)
        Py_CLEAR(module);
    return module;
}
