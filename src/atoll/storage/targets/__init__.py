"""What hosts log in to: one package for each kind of SCSI target."""
