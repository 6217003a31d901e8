//! The wait for other users of a volume's block node in QEMU: block jobs and exports. Their end
//! comes as an event of QEMU, whose socket serves one client, so the lock and the connection are
//! kept meanwhile; but another run that wants the lock gets both, and then everything is read anew.

use block_volume_qmp::Qmp;

use super::session::Session;
use crate::{
    Deadline, Error,
    host::lock_watch::LockWatch,
    qemu::node_users::{self, NodeUsers},
    volume_id::VolumeId,
};

/// Waits until the block node of the volume has no other user, with the lock held and `qmp`
/// connected. Returns when it has none, when another run has had its turn, or at `deadline`:
/// everything has to be read anew, and the lock may be released. The `watch` began before QEMU was
/// asked.
///
/// # Errors
/// QEMU does not reply.
pub(crate) async fn wait(
    session: &mut Session,
    mut qmp: Qmp,
    watch: &LockWatch,
    id: &VolumeId,
    deadline: Deadline,
) -> Result<(), Error> {
    qmp.set_deadline(deadline);
    let is_free = async {
        // An event may be about another job.
        while node_users::changed(&mut qmp, deadline).await {
            if NodeUsers::read(&mut qmp).await?.of(id).is_empty() {
                break;
            }
        }
        Ok::<_, Error>(())
    };
    let is_wanted = tokio::select! {
        () = watch.wanted() => true,
        free = is_free => free.map(|()| false)?,
    };
    qmp.close();
    if is_wanted {
        session.log.step(|| "another run has its turn".to_owned());
        if let Some(lock) = session.unlock() {
            watch.give_way(lock, deadline).await;
        }
    }
    Ok(())
}
