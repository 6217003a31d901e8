// What the unwinder of gcc needs beside musl in a static program: it was built with glibc. ci/musl
// adds it to the unwinder.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

static int find_tables(struct dl_phdr_info *object, size_t size, void *found) {
  (void)size;
  for (int i = 0; i < object->dlpi_phnum; i++)
    if (object->dlpi_phdr[i].p_type == PT_GNU_EH_FRAME)
      ((struct dl_find_object *)found)->dlfo_eh_frame =
        (void *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
  return 0;
}

// glibc's function by which the unwinder finds the tables of the object that a function is in. A
// static program is one object.
int _dl_find_object(void *function, struct dl_find_object *found) {
  (void)function;
  found->dlfo_eh_frame = 0;
  dl_iterate_phdr(find_tables, found);
  return found->dlfo_eh_frame ? 0 : -1;
}

// The unwinder refers to these weakly, which does not take them from an archive, and it calls them
// where it finds __pthread_key_create, which musl always has.
void *const pthread_functions[] = {
  (void *)pthread_once, (void *)pthread_key_create, (void *)pthread_getspecific,
  (void *)pthread_setspecific, (void *)pthread_mutex_lock, (void *)pthread_mutex_unlock,
};
